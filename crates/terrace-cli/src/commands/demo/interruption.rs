//! The **interruption**: Ctrl-C, and the system's other ways to say so.

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Listens from when it is made, so that nothing that comes later ends the program at once.
#[derive(Debug)]
pub(crate) struct Interruption {
    #[cfg(unix)]
    signals: Vec<Signal>,
}

impl Interruption {
    /// Begins to listen. Must be called within the runtime.
    #[cfg(unix)]
    pub(crate) fn listen() -> Self {
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        // What cannot be listened to does what it always does.
        Self { signals: kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect() }
    }

    /// Waits for the next one.
    #[cfg(unix)]
    pub(crate) async fn wait(&mut self) {
        std::future::poll_fn(|context| {
            // All of them, so that each wakes this task.
            let ready = self
                .signals
                .iter_mut()
                .filter_map(|signal| signal.poll_recv(context).is_ready().then_some(()));
            if ready.count() > 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    #[cfg(not(unix))]
    pub(crate) fn listen() -> Self {
        Self {}
    }

    #[cfg(not(unix))]
    pub(crate) async fn wait(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    }
}
