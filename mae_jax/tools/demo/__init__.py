"""A local web page to try a model: drop an image, mask patches.

`server` is the HTTP server, `page.html` the page.
"""
