//! The published JSON of v1, oddities included: one type per body, named as the API
//! reference names it. No logic.
//!
//! Requests are types too, for clients and for the OpenAPI document. The server reads
//! requests by hand, because its answers must name the field that is wrong.
//!
//! Numbers are JSON integers below 2^63 and times are texts without a zone: real clients
//! fail on anything else.

pub mod check;
pub mod checkpoint;
pub mod checkpoint_item;
pub mod error;
pub mod explain;
pub mod fleet;
pub mod identity;
pub mod plan;
pub mod proof;
pub mod restore;
pub mod tag;
pub mod version;

/// The only provider there is (seed): servers.
pub const PROVIDER_ID: &str = "fc4d5750-22e7-4798-8a46-f48f62c4c1da";

/// The only resource type that can be backed up and restored.
pub const SERVER_TYPE: &str = "OS::Nova::Server";
