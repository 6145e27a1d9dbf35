//! SIGTERM and SIGINT: the first asks to stop, the second stops.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::failure::{Failure, OrFail as _};

/// What a shell reports for a program ended by SIGINT.
const STOPPED_BY_HAND: i32 = 130;

/// A token that is cancelled at the first signal. The second ends the process at once:
/// what it was doing is repeated at the next start, as after any crash.
pub(crate) fn until_told_to_stop() -> Result<CancellationToken, Failure> {
    let mut terminate = signal(SignalKind::terminate()).or_fail("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).or_fail("listening for SIGINT")?;
    let told = CancellationToken::new();
    let telling = told.clone();
    tokio::spawn(async move {
        for _ in 0..2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if telling.is_cancelled() {
                std::process::exit(STOPPED_BY_HAND);
            }
            telling.cancel();
        }
    });
    Ok(told)
}
