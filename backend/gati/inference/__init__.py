"""Running a chain's segments and heads: engines (inline, BLS), sessions, devices, and graphs joined of them."""
