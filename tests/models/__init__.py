"""Models of other libraries than timm, and of user code, that the alignment must follow or refuse by name."""
