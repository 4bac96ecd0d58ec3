"""Faces in photographs: found, aligned, embedded, masked and pasted back. The extra `faces` brings the models."""
