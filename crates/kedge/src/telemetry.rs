//! The log: to standard error, one event a line.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

use crate::config::LogFormat;
use crate::failure::{Failure, OrFail as _};

/// Whether a text says which events to log.
pub(crate) fn is_filter(text: &str) -> Result<(), String> {
    EnvFilter::try_new(text).map(|_| ()).map_err(|error| error.to_string())
}

/// Begins to log.
pub(crate) fn start(format: LogFormat, filter: &str) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(filter).or_fail("log.filter")?;
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Json => log.json().flatten_event(true).try_init(),
        LogFormat::Text => log.try_init(),
    }
    .or_fail("starting the log")
}
