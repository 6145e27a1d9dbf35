//! Serves a router on a listener, with limits on what a connection may take, until told
//! to stop.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{debug, warn};

use crate::config::Limits;
use crate::stream::WriteLimited;

/// How long to leave a listener alone that cannot accept, which is mostly for want of
/// file descriptors: time for others to close some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is ready; then takes no more connections and gives running
/// calls [`Limits::drain_time`].
pub async fn serve(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) {
    let connections = Arc::new(Semaphore::new(limits.connections_max));
    let running = GracefulShutdown::new();
    let http = http_with(&limits);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = select! {
            accepted = accept(&listener, &connections) => accepted,
            () = &mut shutdown => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        let service = TowerToHyperService::new(router.clone());
        let stream = TokioIo::new(WriteLimited::new(stream, limits.write_time));
        let connection = running.watch(http.serve_connection(stream, service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "a connection ended early: {error}");
            }
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain_time, running.shutdown()).await.is_err() {
        warn!("stopped with calls still running");
    }
}

/// A connection and its place; `None` when there was none to be had this time.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let permit = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => {
            // Answers are whole, or come in whole lines: there is nothing to wait for.
            if let Err(error) = stream.set_nodelay(true) {
                debug!(%error, "no TCP_NODELAY: {error}");
            }
            Some((stream, permit))
        }
        Err(error) => {
            warn!(%error, "cannot accept a connection: {error}");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

fn http_with(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_headers(limits.headers_max)
        .max_header_size(limits.header_bytes_max)
        // hyper takes no less than its own least.
        .max_buf_size(limits.header_bytes_max.max(8192));
    http
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::{Notify, oneshot};
    use tokio::task::JoinHandle;

    use super::*;

    struct Server {
        address: SocketAddr,
        stop: oneshot::Sender<()>,
        ended: JoinHandle<()>,
    }

    async fn start(router: Router, limits: Limits) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move { stopped.await.unwrap_or_default() };
        let ended = tokio::spawn(serve(listener, router, limits, shutdown));
        Server { address, stop, ended }
    }

    /// Sends bytes and reads what comes until the server closes.
    async fn exchange(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8(answer).unwrap()
    }

    /// Longest wait for what has to happen: only a failing test takes it.
    const PATIENCE: Duration = Duration::from_secs(20);

    const GET: &str = "GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";

    #[tokio::test]
    async fn a_running_call_is_finished_and_no_new_one_begun() {
        let (begun, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (begin, released) = (begun.clone(), release.clone());
        let slow = move || async move {
            begin.notify_one();
            released.notified().await;
            "done"
        };
        let server = start(Router::new().route("/", get(slow)), Limits::default()).await;
        let call = tokio::spawn(exchange(server.address, GET));
        begun.notified().await;
        server.stop.send(()).unwrap();
        // The listener goes at once; what still queued at the socket is reset.
        while TcpStream::connect(server.address).await.is_ok() {
            tokio::task::yield_now().await;
        }
        assert!(!server.ended.is_finished());
        release.notify_one();
        assert!(call.await.unwrap().ends_with("done"));
        server.ended.await.unwrap();
    }

    #[tokio::test]
    async fn a_call_that_does_not_end_does_not_hold_up_the_end_for_ever() {
        let begun = Arc::new(Notify::new());
        let begin = begun.clone();
        let endless = move || async move {
            begin.notify_one();
            std::future::pending::<&str>().await
        };
        let limits = Limits { drain_time: Duration::from_millis(1), ..Limits::default() };
        let server = start(Router::new().route("/", get(endless)), limits).await;
        let call = tokio::spawn(exchange(server.address, GET));
        begun.notified().await;
        server.stop.send(()).unwrap();
        server.ended.await.unwrap();
        call.abort();
    }

    #[tokio::test]
    async fn heads_are_bounded_in_time_number_and_size() {
        let limits = Limits {
            header_time: Duration::from_millis(20),
            headers_max: 4,
            header_bytes_max: 1024,
            ..Limits::default()
        };
        let server = start(Router::new().route("/", get(|| async { "fine" })), limits).await;
        assert!(exchange(server.address, GET).await.ends_with("fine"));
        let slow = exchange(server.address, "GET / HTTP/1.1\r\nhost: h\r\n").await;
        assert!(!slow.contains("fine"), "{slow}");
        let many = "a: 1\r\n".repeat(5);
        let many = exchange(server.address, &format!("GET / HTTP/1.1\r\n{many}\r\n")).await;
        assert!(many.starts_with("HTTP/1.1 431"), "{many}");
        let long = "x".repeat(2000);
        let long = exchange(server.address, &format!("GET / HTTP/1.1\r\na: {long}\r\n\r\n")).await;
        assert!(long.starts_with("HTTP/1.1 431"), "{long}");
    }

    #[tokio::test]
    async fn a_client_that_reads_nothing_loses_its_connection() {
        let limits = Limits {
            connections_max: 1,
            write_time: Duration::from_millis(20),
            ..Limits::default()
        };
        // More than the sockets of both sides take.
        let large = || async { vec![b'x'; 64 << 20] };
        let router = Router::new().route("/", get(|| async { "fine" })).route("/large", get(large));
        let server = start(router, limits).await;
        let mut idle = TcpStream::connect(server.address).await.unwrap();
        idle.write_all(b"GET /large HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
        let next = tokio::time::timeout(PATIENCE, exchange(server.address, GET)).await;
        assert!(next.unwrap().ends_with("fine"));
        drop(idle);
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_wait_for_their_turn() {
        let limits = Limits { connections_max: 1, ..Limits::default() };
        let server = start(Router::new().route("/", get(|| async { "fine" })), limits).await;
        let first = TcpStream::connect(server.address).await.unwrap();
        let mut second = Box::pin(exchange(server.address, GET));
        let waited = tokio::time::timeout(Duration::from_millis(50), &mut second).await;
        assert!(waited.is_err(), "{waited:?}");
        drop(first);
        assert!(second.await.ends_with("fine"));
    }
}
