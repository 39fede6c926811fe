//! Synchronisation: what threads share state by, in one of three kinds.
//!
//! Ordinary builds get the types of the standard library and of `parking_lot`. With `--cfg loom`
//! or `--cfg shuttle` they are those of the tools that run a test in many interleavings; see the
//! tests in `models`, and in `tests/schedules`. Whatever is no part of a protocol between threads
//! (counters of hits, for example) stays with the standard library in all of them.

#[cfg(loom)]
pub(crate) use loom::{hint, sync::atomic, thread};
#[cfg(shuttle)]
pub(crate) use shuttle::{hint, sync::atomic, thread};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::{hint, sync::atomic, thread};

#[cfg(loom)]
pub(crate) use loom::cell::UnsafeCell;
#[cfg(not(loom))]
pub(crate) use plain::UnsafeCell;

#[cfg(any(loom, shuttle))]
pub(crate) use explored::{Mutex, MutexGuard, RwLock};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock};

/// A static variable, of which each execution of a model has its own.
macro_rules! global {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(loom)]
        loom::lazy_static! { static ref $name: $type = $value; }
        #[cfg(shuttle)]
        shuttle::lazy_static! { static ref $name: $type = $value; }
        $(#[$attribute])*
        #[cfg(not(any(loom, shuttle)))]
        static $name: $type = $value;
    };
}

/// A variable of each thread.
macro_rules! local {
    ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
        #[cfg(loom)]
        loom::thread_local! { static $name: $type = $value; }
        #[cfg(shuttle)]
        shuttle::thread_local! { static $name: $type = $value; }
        #[cfg(not(any(loom, shuttle)))]
        thread_local! {
            $(#[$attribute])*
            static $name: $type = const { $value };
        }
    };
}

pub(crate) use {global, local};

/// What an atomic pointer holds, by a load that is not atomic: the compiler may keep what it has
/// loaded. The tools that explore interleavings know atomic loads alone.
///
/// # Safety
/// No other thread stores to it meanwhile.
#[inline(always)]
pub(crate) unsafe fn load_unshared<T>(pointer: &atomic::AtomicPtr<T>) -> *mut T {
    #[cfg(any(loom, shuttle))]
    return pointer.load(atomic::Ordering::Relaxed);
    // SAFETY: the caller promises that nobody stores to it.
    #[cfg(not(any(loom, shuttle)))]
    return unsafe { *pointer.as_ptr() };
}

#[cfg(not(loom))]
mod plain {
    use std::cell;

    /// That of the standard library, with the methods of that of `loom`, which notes each access.
    pub(crate) struct UnsafeCell<T>(cell::UnsafeCell<T>);

    impl<T> UnsafeCell<T> {
        pub(crate) const fn new(value: T) -> Self {
            Self(cell::UnsafeCell::new(value))
        }

        #[inline(always)]
        pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
            read(self.0.get())
        }

        #[inline(always)]
        pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
            write(self.0.get())
        }
    }
}

/// Locks with the methods of those of `parking_lot`: a panic leaves them open.
#[cfg(any(loom, shuttle))]
mod explored {
    use std::sync::{PoisonError, TryLockError};

    #[cfg(loom)]
    use loom::sync;
    #[cfg(shuttle)]
    use shuttle::sync;

    pub(crate) use sync::MutexGuard;

    #[derive(Default)]
    pub(crate) struct Mutex<T>(sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            match self.0.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        }
    }

    #[derive(Default)]
    pub(crate) struct RwLock<T>(sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn read(&self) -> sync::RwLockReadGuard<'_, T> {
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }

        pub(crate) fn write(&self) -> sync::RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
