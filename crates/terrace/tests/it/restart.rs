//! What a new start finds, after an orderly end and after a kill.
