"""Invoices write down what is owed, with a number, and never change it again."""
