"""What Tallyman can do, to run and to copy from: `examples/cloud` is a project, `examples/demo.py` runs it whole."""
