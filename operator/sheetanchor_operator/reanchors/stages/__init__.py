"""The stages of a plan about re-anchors, in their order: each takes a situation and gives changes. Pure."""
