"""A server that answers with predictions, features and reconstructions."""
