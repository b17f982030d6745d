"""A catalogue of port bugs, to test the tests with: `parity faults`."""
