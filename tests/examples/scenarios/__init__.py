"""A scenario for each feature: ``play`` asks what its examples are to show. Its module has the name of the feature."""
