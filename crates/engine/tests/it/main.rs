//! The engine judged from outside: by stock restic, by random volumes, by failing
//! every step once, by damaging every object.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test that cannot go on fails where it stands"
)]

mod backends;
mod corruption;
mod crash;
mod faults;
mod model;
mod moto;
mod passwords;
mod proxy;
mod prune;
mod reading;
mod restic;
mod restic_prune;
mod scenario;
mod sessions;
mod support;
mod volumes;
