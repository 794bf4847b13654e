"""Cameras, meshes, point clouds, fields, rendering, surface extraction, texturing, files and geometric metrics."""
