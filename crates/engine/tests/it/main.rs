//! The engine judged from outside: by stock restic, by random volumes, by failing
//! every step once, by damaging every object.

mod corruption;
mod faults;
mod restic;
mod sessions;
mod support;
mod volumes;
