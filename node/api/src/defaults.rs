//! What a kind fills in where the user said nothing.
