"""Tests; a package so that tests share helpers by name."""
