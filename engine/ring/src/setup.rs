//! Opening an io_uring as this crate needs it, or saying in words why not; and the calls into the kernel.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::time::Duration;

use io_uring::types::{Napi, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, Probe, Submitter, cqueue, opcode, squeue};

use crate::Errno;

/// Completions that fit for each submission entry: operations wait long (a receive of an idle session), so many more
/// are in flight than are submitted at once. Past it the kernel keeps completions in a list of its own.
const COMPLETIONS_PER_SUBMISSION: u32 = 8;
/// The longest wait; keeps any `Duration` within what the kernel takes.
const MAX_WAIT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

const REGISTER_RING_FDS: u32 = 20; // linux/io_uring.h
const UNREGISTER_RING_FDS: u32 = 21;

const OPCODES: [(&str, u8); 8] = [
    ("ACCEPT", opcode::AcceptMulti::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("READ", opcode::Read::CODE),
    ("RECV", opcode::Recv::CODE),
    ("SEND", opcode::Send::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
];

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// ENOSYS: a kernel built without io_uring, or a seccomp filter that says so.
    #[error("this kernel has no io_uring, or a seccomp filter hides it (ENOSYS)")]
    Absent,
    /// EPERM or EACCES with `kernel.io_uring_disabled` set.
    #[error("io_uring is switched off on this machine: kernel.io_uring_disabled = {level}")]
    Disabled {
        /// 1: for all but the members of a group and CAP_SYS_ADMIN; 2: for all.
        level: u8,
    },
    /// EPERM or EACCES otherwise.
    #[error(
        "io_uring is forbidden to this process, most likely by a seccomp filter such as a container's: {0}"
    )]
    Forbidden(Errno),
    /// EINVAL to the flags that came with Linux 6.1.
    #[error("this kernel's io_uring is older than Linux 6.1 (it refuses SINGLE_ISSUER | DEFER_TASKRUN)")]
    TooOld,
    /// A feature flag is not there.
    #[error("this kernel's io_uring lacks {0}")]
    MissingFeature(&'static str),
    /// An operation is not there.
    #[error("this kernel's io_uring lacks the operation {0}")]
    MissingOperation(&'static str),
    /// ENOMEM, of the memory limits of this process or of the machine.
    #[error("no memory for {0} (ENOMEM; see RLIMIT_MEMLOCK and the memory limit of the cgroup)")]
    NoMemory(&'static str),
    /// Any other error, and at which step.
    #[error("{step}: {errno}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        errno: Errno,
    },
    /// The configuration cannot be.
    #[error("configuration of the ring: {0}")]
    Config(&'static str),
    /// The live self-test of plain operations failed.
    #[error("io_uring is there but does not work: {0}")]
    SelfTest(&'static str),
}

impl SetupError {
    pub(crate) fn at(step: &'static str, error: &io::Error) -> SetupError {
        match Errno::from_io_error(error) {
            Some(Errno::NOMEM) => SetupError::NoMemory(step),
            Some(errno) => SetupError::Failed { step, errno },
            None => SetupError::Failed { step, errno: Errno::IO },
        }
    }

    fn of_setup(error: &io::Error) -> SetupError {
        match Errno::from_io_error(error) {
            Some(Errno::NOSYS) => SetupError::Absent,
            Some(Errno::INVAL) => SetupError::TooOld,
            Some(errno @ (Errno::PERM | Errno::ACCESS)) => match disabled_level() {
                Some(level @ 1..) => SetupError::Disabled { level },
                Some(0) | None => SetupError::Forbidden(errno),
            },
            Some(_) | None => SetupError::at("io_uring_setup", error),
        }
    }
}

fn disabled_level() -> Option<u8> {
    fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?.trim().parse().ok()
}

/// An io_uring, and the calls into it.
pub(crate) struct Kernel {
    uring: IoUring,
    /// Where the ring is registered with this thread, which spares the kernel a look-up of its descriptor.
    registered: Option<u32>,
}

impl Kernel {
    pub(crate) fn new(entries: u32) -> Result<Kernel, SetupError> {
        if entries == 0 {
            return Err(SetupError::Config("entries is 1 at least"));
        }
        let uring = match build(entries, SubmissionArray::Absent) {
            // NO_SQARRAY came with Linux 6.6.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                build(entries, SubmissionArray::Present)
            }
            built => built,
        }
        .map_err(|error| SetupError::of_setup(&error))?;
        if !uring.params().is_feature_ext_arg() {
            return Err(SetupError::MissingFeature("EXT_ARG"));
        }
        if !uring.params().is_feature_nodrop() {
            return Err(SetupError::MissingFeature("NODROP"));
        }
        let mut probe = Probe::new();
        uring.submitter().register_probe(&mut probe).map_err(|error| SetupError::at("the probe", &error))?;
        if let Some((name, _)) = OPCODES.iter().find(|(_, code)| !probe.is_supported(*code)) {
            return Err(SetupError::MissingOperation(name));
        }
        let registered = register_descriptor(&uring);
        Ok(Kernel { uring, registered })
    }

    /// Makes waits poll the network devices before they sleep.
    pub(crate) fn poll_busily(&self, time: Duration) -> Result<(), SetupError> {
        let micros = u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let mut napi = Napi::new().set_busy_poll_timeout(micros);
        self.uring
            .submitter()
            .register_napi(&mut napi)
            .map_err(|error| SetupError::at("busy polling (IORING_REGISTER_NAPI of Linux 6.9)", &error))
    }

    pub(crate) fn submitter(&self) -> Submitter<'_> {
        self.uring.submitter()
    }

    /// Queues an operation; false when the queue is full.
    ///
    /// # Safety
    /// The memory that `entry` points to stays valid and is not used in conflict with the kernel until the
    /// operation's last completion has been read.
    #[inline]
    pub(crate) unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's promise is the one that `push` asks for.
        unsafe { self.uring.submission().push(entry) }.is_ok()
    }

    #[inline]
    pub(crate) fn is_full(&mut self) -> bool {
        self.uring.submission().is_full()
    }

    /// Operations queued and not yet taken by the kernel.
    #[inline]
    pub(crate) fn queued(&mut self) -> usize {
        self.uring.submission().len()
    }

    /// Completions that can be read.
    #[inline]
    pub(crate) fn ready(&mut self) -> usize {
        self.uring.completion().len()
    }

    #[inline]
    pub(crate) fn next_completion(&mut self) -> Option<cqueue::Entry> {
        self.uring.completion().next()
    }

    /// Submits what is queued, without reaping; how many operations the kernel took.
    pub(crate) fn submit(&mut self) -> io::Result<usize> {
        self.enter(0, EnterFlags::empty(), None)
    }

    /// Submits what is queued, and waits for `want` completions or the timeout (an error, ETIME).
    #[inline]
    pub(crate) fn submit_and_wait(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<usize> {
        self.enter(want, EnterFlags::GETEVENTS, timeout)
    }

    #[inline]
    fn enter(&mut self, want: u32, flags: EnterFlags, timeout: Option<Duration>) -> io::Result<usize> {
        let queued = self.queued();
        let limit = Timespec::from(timeout.unwrap_or_default().min(MAX_WAIT));
        let arguments = match timeout {
            Some(_) => SubmitArgs::new().timespec(&limit),
            None => SubmitArgs::new(),
        };
        let (descriptor, flags) = match self.registered {
            Some(index) => (index as i32, flags | EnterFlags::EXT_ARG | EnterFlags::REGISTERED_RING),
            None => (self.uring.as_raw_fd(), flags | EnterFlags::EXT_ARG),
        };
        // SAFETY: the arguments and the time they point to live to the end of this function, and their size is given;
        // what the queued operations point to is promised by those who pushed them.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                descriptor,
                queued,
                want,
                flags.bits(),
                ptr::from_ref(&arguments),
                size_of::<SubmitArgs<'_, '_>>(),
            )
        };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // A registered ring stays open until unregistered, or until its thread ends.
        if let Some(index) = self.registered {
            let mut update = RingUpdate { offset: index, resv: 0, data: 0 };
            let _ = register(&self.uring, UNREGISTER_RING_FDS, &mut update);
        }
    }
}

/// Whether the submission queue has the array of indices that newer kernels do without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SubmissionArray {
    Present,
    Absent,
}

fn build(entries: u32, array: SubmissionArray) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_clamp()
        .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_SUBMISSION));
    if array == SubmissionArray::Absent {
        builder.setup_no_sqarray();
    }
    builder.build(entries)
}

/// `io_uring_rsrc_update` of linux/io_uring.h.
#[repr(C)]
struct RingUpdate {
    offset: u32,
    resv: u32,
    data: u64,
}

/// Registers the ring's descriptor with this thread. A thread has room for 16; past that, or on refusal, the plain
/// descriptor serves as well.
fn register_descriptor(uring: &IoUring) -> Option<u32> {
    let mut update = RingUpdate { offset: u32::MAX, resv: 0, data: uring.as_raw_fd() as u64 };
    let registered = register(uring, REGISTER_RING_FDS, &mut update).ok()?;
    (registered == 1).then_some(update.offset)
}

fn register(uring: &IoUring, opcode: u32, update: &mut RingUpdate) -> io::Result<i64> {
    let descriptor = uring.as_raw_fd();
    // SAFETY: both opcodes read and write one io_uring_rsrc_update, which `update` is laid out as and outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, descriptor, opcode, ptr::from_mut(update), 1) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
