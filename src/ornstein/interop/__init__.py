"""Models of other libraries as ours, and ours as theirs; each module needs its library when it is imported."""
