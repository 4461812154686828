"""A page on this machine where people upload photographs: ``tools/web_demo.py``."""
