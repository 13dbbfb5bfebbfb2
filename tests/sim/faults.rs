//! Mistakes that a driver could make: each must be noticed, or the simulation would prove nothing.

/// One mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A byte that was received is lost.
    DropByte,
    /// A byte that was received is delivered twice.
    DoubleByte,
    /// Two bytes change places.
    SwapBytes,
    /// The session is not told of an end of stream.
    LoseHalfClose,
    /// The session is not told of a connect that failed.
    SkipConnectFailed,
    /// A reset is told as an end of stream.
    ResetAsEnd,
    /// A shutdown is not carried out.
    SkipShutDown,
    /// What was commanded to be sent is not.
    ForgetOutbox,
    /// Attempts that were given up stay open.
    IgnoreAbandon,
    /// Bytes beyond what may be forwarded are forwarded.
    SendSurplus,
    /// More goes into a pipe than may.
    OverfillPipe,
}

impl Fault {
    pub(crate) const ALL: [Fault; 11] = [
        Fault::DropByte,
        Fault::DoubleByte,
        Fault::SwapBytes,
        Fault::LoseHalfClose,
        Fault::SkipConnectFailed,
        Fault::ResetAsEnd,
        Fault::SkipShutDown,
        Fault::ForgetOutbox,
        Fault::IgnoreAbandon,
        Fault::SendSurplus,
        Fault::OverfillPipe,
    ];
}
