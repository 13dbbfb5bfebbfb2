//! The composition root of `ringweir`: hands control a function that starts an engine. Nothing else knows both.

use std::process::ExitCode;
use std::sync::Arc;

use ringweir_control::{Driver, Opened, StartRequest, Started};
use ringweir_flow::close::CloseReason;
use ringweir_flow::retire::Retirement;
use ringweir_flow::snapshot::Snapshot;

fn main() -> ExitCode {
    ringweir_control::run(engines::start)
}

/// Tokio, on any system.
struct Tokio(ringweir_fallback::Handle);

impl Driver for Tokio {
    fn publish(&self, snapshot: Arc<Snapshot>, opened: Vec<Opened>) {
        self.0.publish(&snapshot, opened);
    }

    fn drain(&self) {
        self.0.drain();
    }

    fn retire(&self, order: Arc<Retirement>) {
        self.0.retire(&order);
    }

    fn stop(self: Box<Self>, reason: CloseReason) {
        self.0.stop(reason);
    }
}

fn start_tokio(request: StartRequest) -> Result<Started, String> {
    if request.busy_poll.is_some() {
        return Err("engine.busy_poll: the tokio engine cannot; only the io_uring engine can".to_owned());
    }
    let options = ringweir_fallback::Options {
        workers: request.workers,
        pipes: request.pipes,
        resolver: request.resolver,
        verifier: request.verifier,
    };
    let handle = ringweir_fallback::start(options, request.snapshot, request.opened)
        .map_err(|error| format!("the tokio engine does not start: {error}"))?;
    tracing::info!(workers = request.workers, "engine: tokio");
    Ok(Started { name: "tokio", driver: Box::new(Tokio(handle)) })
}

#[cfg(target_os = "linux")]
mod engines {
    use std::sync::Arc;

    use ringweir_control::model::EngineKind;
    use ringweir_control::{Driver, Opened, StartRequest, Started};
    use ringweir_flow::close::CloseReason;
    use ringweir_flow::retire::Retirement;
    use ringweir_flow::snapshot::Snapshot;

    use super::start_tokio;

    struct IoUring(ringweir_engine::Handle);

    impl Driver for IoUring {
        fn publish(&self, snapshot: Arc<Snapshot>, opened: Vec<Opened>) {
            self.0.publish(&snapshot, opened);
        }

        fn drain(&self) {
            self.0.drain();
        }

        fn retire(&self, order: Arc<Retirement>) {
            self.0.retire(&order);
        }

        fn stop(self: Box<Self>, reason: CloseReason) {
            self.0.stop(reason);
        }
    }

    pub(super) fn start(request: StartRequest) -> Result<Started, String> {
        match request.kind {
            EngineKind::Tokio => start_tokio(request),
            EngineKind::IoUring => start_io_uring(request),
            EngineKind::Auto => match ringweir_engine::probe() {
                Ok(_) => start_io_uring(request),
                Err(error) => {
                    tracing::warn!(
                        "io_uring is refused here ({error}); the tokio engine serves instead, for about 1.3 times \
                         the CPU of a small message"
                    );
                    start_tokio(request)
                }
            },
        }
    }

    fn start_io_uring(request: StartRequest) -> Result<Started, String> {
        let options = ringweir_engine::Options {
            workers: request.workers,
            pipes: request.pipes,
            busy_poll: request.busy_poll,
            resolver: request.resolver,
            verifier: request.verifier,
        };
        let handle = ringweir_engine::start(options, request.snapshot, request.opened)
            .map_err(|error| format!("the io_uring engine does not start: {error}"))?;
        tracing::info!(workers = request.workers, "engine: io-uring");
        Ok(Started { name: "io-uring", driver: Box::new(IoUring(handle)) })
    }
}

#[cfg(not(target_os = "linux"))]
mod engines {
    use ringweir_control::model::EngineKind;
    use ringweir_control::{StartRequest, Started};

    use super::start_tokio;

    pub(super) fn start(request: StartRequest) -> Result<Started, String> {
        match request.kind {
            EngineKind::Auto | EngineKind::Tokio => start_tokio(request),
            EngineKind::IoUring => Err("io_uring is of Linux: --engine auto or tokio".to_owned()),
        }
    }
}
