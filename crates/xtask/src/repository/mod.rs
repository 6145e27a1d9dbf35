//! Tests of the repository itself: what no compiler checks and every reader relies on.

mod disk_image;
mod documents;
mod edges;
mod sources;
