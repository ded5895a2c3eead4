"""The suites: each module has a function `cases(quick)`. What imports diffusers does so inside a function."""
