"""A pytest plugin: fakes for tests of code that uses this package."""
