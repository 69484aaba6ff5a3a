"""`gati demo`: the whole product on handwritten digits, in a few minutes."""
