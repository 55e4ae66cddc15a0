"""Images: the sources, the tf.data pipeline, and single image files.

The pipeline of training and evaluation needs TensorFlow, which `tf_setup`
imports. `image_headers`, `image_io`, `listing`, `image_files` and `prepare` do
without it: they serve the commands and the Python API.
"""
