//! What the operating system asks of the daemon.

use tokio::sync::mpsc;

use crate::daemon::Event;

/// Passes signals on as events for as long as the daemon runs.
///
/// # Errors
/// When a handler cannot be installed.
#[cfg(unix)]
pub(crate) fn listen(events: mpsc::Sender<Event>) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};

    let mut hangup = signal(SignalKind::hangup())?;
    let mut user = signal(SignalKind::user_defined1())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                _ = hangup.recv() => Event::Reload(None),
                _ = user.recv() => Event::WriteHistograms,
                _ = terminate.recv() => Event::Terminate,
                _ = interrupt.recv() => Event::Terminate,
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Passes Ctrl-C on as an event for as long as the daemon runs.
///
/// # Errors
/// When the handler cannot be installed.
#[cfg(windows)]
pub(crate) fn listen(events: mpsc::Sender<Event>) -> std::io::Result<()> {
    let mut interrupt = tokio::signal::windows::ctrl_c()?;
    tokio::spawn(async move {
        while interrupt.recv().await.is_some() {
            if events.send(Event::Terminate).await.is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Tells the service manager how it stands (sd_notify(3)); nothing where there is none.
#[cfg(target_os = "linux")]
pub(crate) fn notify(state: ServiceState) {
    use sd_notify::NotifyState;

    let states = match state {
        ServiceState::Ready => vec![NotifyState::Ready],
        ServiceState::Reloading => match NotifyState::monotonic_usec_now() {
            Ok(now) => vec![NotifyState::Reloading, now],
            Err(_) => vec![NotifyState::Reloading],
        },
        ServiceState::Stopping => vec![NotifyState::Stopping],
    };
    if let Err(error) = sd_notify::notify(&states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}

/// There is no such service manager here.
#[cfg(not(target_os = "linux"))]
pub(crate) fn notify(_state: ServiceState) {}

/// How the daemon stands, for its service manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServiceState {
    Ready,
    Reloading,
    Stopping,
}
