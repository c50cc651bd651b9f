"""What methods have in common: the contract, the builder that all callers use, and the abstract families."""
