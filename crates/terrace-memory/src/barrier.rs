//! A barrier in two unequal halves: light for readers, heavy for those who free what was read.
//!
//! When one thread stores, passes a light barrier and loads, and another stores, passes a heavy
//! one and loads, at least one of them sees what the other stored. Two full fences do that too,
//! but a fence costs a reader more than all the rest of a hit. Where the kernel can make every
//! running thread pass a barrier (Linux, `membarrier(2)`), the light half is one for the compiler
//! alone.

use crate::sync::atomic::{Ordering, fence};

/// Finds out what the machine can do. Has to be called before the first heavy barrier.
pub(crate) fn prepare() {
    kernel::prepare();
}

/// The half of those who read often.
#[inline(always)]
pub(crate) fn light() {
    if kernel::is_able() {
        std::sync::atomic::compiler_fence(Ordering::SeqCst);
    } else {
        fence(Ordering::SeqCst);
    }
}

/// The half of those who free now and then: takes some hundred nanoseconds, or ten microseconds
/// when other threads of the process are running. `false` when it could not be done: then
/// nothing may be freed.
pub(crate) fn heavy() -> bool {
    if kernel::is_able() {
        kernel::barrier()
    } else {
        fence(Ordering::SeqCst);
        true
    }
}

#[cfg(all(target_os = "linux", not(any(loom, shuttle))))]
mod kernel {
    use std::sync::Once;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

    /// Never changes once it has been found out: a reader that saw `true` has no fence of its own,
    /// so no writer may see `false`.
    static IS_ABLE: AtomicBool = AtomicBool::new(false);

    static IS_FOUND_OUT: Once = Once::new();

    pub(super) fn prepare() {
        IS_FOUND_OUT.call_once(|| {
            IS_ABLE.store(call(libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED), Relaxed);
        });
    }

    #[inline(always)]
    pub(super) fn is_able() -> bool {
        IS_ABLE.load(Relaxed)
    }

    pub(super) fn barrier() -> bool {
        call(libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED)
    }

    fn call(command: libc::membarrier_cmd) -> bool {
        // SAFETY: these commands of the system call take no pointers and touch no memory.
        unsafe { libc::syscall(libc::SYS_membarrier, command, 0, 0) == 0 }
    }
}

#[cfg(not(all(target_os = "linux", not(any(loom, shuttle)))))]
mod kernel {
    pub(super) fn prepare() {}

    #[inline(always)]
    pub(super) fn is_able() -> bool {
        false
    }

    pub(super) fn barrier() -> bool {
        false
    }
}
