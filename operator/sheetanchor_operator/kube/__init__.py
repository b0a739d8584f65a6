"""The Kubernetes API and what is asked through it: the only package that talks to a cluster."""
