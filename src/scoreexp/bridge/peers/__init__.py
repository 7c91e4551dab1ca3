"""Training loops of other libraries, run in an interpreter that need not have scoreexp."""
