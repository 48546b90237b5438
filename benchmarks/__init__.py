"""How fast and how exact: conescope's engine against its peers, in one run, on equal terms."""
