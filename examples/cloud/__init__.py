"""A small cloud with three tenants: its project files, and a generator of one month of its usage."""
