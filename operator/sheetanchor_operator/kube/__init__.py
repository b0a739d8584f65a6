"""The Kubernetes API and the requests that go through it: the only package that connects to a cluster."""
