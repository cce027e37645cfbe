"""Small topics for the tests of the pipeline. Importing one puts it into the registry."""
