"""A page on this machine to try a network on: drop an image, hide patches.

`server` answers, `page.html` is what is seen.
"""
