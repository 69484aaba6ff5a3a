"""The way of a request: read from Triton, flown through the live release, answered, drawn for an audit."""
