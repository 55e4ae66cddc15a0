"""A local web page to try a model: drop an image, mask patches."""
