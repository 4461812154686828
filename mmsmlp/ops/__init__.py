"""The quick ways to compute what :mod:`mmsmlp.layers` says plainly; every one is tested equal to the plain one."""
