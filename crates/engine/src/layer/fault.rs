//! A backend whose calls fail on demand, so that tests can fail every step once.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{Backend, BackendError, Listed, ObjectKind, ObjectName};

/// The calls of a [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `prepare`
    Prepare,
    /// `put`
    Put,
    /// `get`
    Get,
    /// `read_at`
    ReadAt,
    /// `find_size`
    FindSize,
    /// `list`
    List,
    /// `delete`
    Delete,
    /// `remove_leftovers`
    RemoveLeftovers,
}

/// How a call fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing is done and the error returned.
    Before(BackendError),
    /// The call is done, but the error returned: the answer got lost.
    After(BackendError),
}

/// Passes calls on, counts and records them, and fails the one it is told to.
#[derive(Debug)]
pub struct FaultBackend<B> {
    inner: B,
    calls: Mutex<Vec<(Operation, Option<ObjectName>)>>,
    plan: Mutex<Option<(usize, Fault)>>,
    broken: Mutex<Option<BackendError>>,
    hook: Hook,
}

/// What is done before each call.
#[derive(Default)]
struct Hook(Mutex<Option<Arc<dyn Fn() + Send + Sync>>>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hook(..)")
    }
}

impl<B: Backend> FaultBackend<B> {
    /// A wrapper that fails nothing yet.
    pub fn new(inner: B) -> Self {
        Self {
            inner,
            calls: Mutex::default(),
            plan: Mutex::default(),
            broken: Mutex::default(),
            hook: Hook::default(),
        }
    }

    /// The wrapped backend.
    pub fn inner(&self) -> &B {
        &self.inner
    }

    /// Does something before each call from now on, such as letting time pass.
    pub fn before_each_call(&self, hook: impl Fn() + Send + Sync + 'static) {
        *self.hook.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(hook));
    }

    /// Fails the call after `calls` more calls, once.
    pub fn fail_after(&self, calls: usize, fault: Fault) {
        let at = self.calls().len() + calls;
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = Some((at, fault));
    }

    /// Fails every call from now on as unreachable, until [`Self::repair`].
    pub fn break_down(&self) {
        self.break_with(BackendError::Unreachable { text: "broken down on demand".into() });
    }

    /// Makes every call fail with this error.
    pub fn break_with(&self, error: BackendError) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    /// Takes back [`Self::break_down`] and [`Self::fail_after`].
    pub fn repair(&self) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = None;
        *self.plan.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The calls so far, in order; with the object where there is one.
    pub fn recorded(&self) -> Vec<(Operation, Option<ObjectName>)> {
        self.calls().clone()
    }

    fn calls(&self) -> MutexGuard<'_, Vec<(Operation, Option<ObjectName>)>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run<T>(
        &self,
        operation: Operation,
        name: Option<&ObjectName>,
        call: impl FnOnce() -> Result<T, BackendError>,
    ) -> Result<T, BackendError> {
        let at = {
            let mut calls = self.calls();
            calls.push((operation, name.copied()));
            calls.len() - 1
        };
        let hook = self.hook.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(hook) = hook {
            hook();
        }
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(error) = broken {
            return Err(error);
        }
        let fault = {
            let mut plan = self.plan.lock().unwrap_or_else(PoisonError::into_inner);
            plan.take_if(|(planned, _)| *planned == at).map(|(_, fault)| fault)
        };
        match fault {
            None => call(),
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After(error)) => call().and(Err(error)),
        }
    }
}

impl<B: Backend> Backend for FaultBackend<B> {
    fn prepare(&self) -> Result<(), BackendError> {
        self.run(Operation::Prepare, None, || self.inner.prepare())
    }

    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), BackendError> {
        self.run(Operation::Put, Some(name), || self.inner.put(name, bytes))
    }

    fn get(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>, BackendError> {
        self.run(Operation::Get, Some(name), || self.inner.get(name, bytes_max))
    }

    fn read_at(&self, name: &ObjectName, offset: u64, buf: &mut [u8]) -> Result<(), BackendError> {
        self.run(Operation::ReadAt, Some(name), || self.inner.read_at(name, offset, buf))
    }

    fn find_size(&self, name: &ObjectName) -> Result<Option<u64>, BackendError> {
        self.run(Operation::FindSize, Some(name), || self.inner.find_size(name))
    }

    fn list(&self, kind: ObjectKind) -> Result<Vec<Listed>, BackendError> {
        self.run(Operation::List, None, || self.inner.list(kind))
    }

    fn delete(&self, name: &ObjectName) -> Result<(), BackendError> {
        self.run(Operation::Delete, Some(name), || self.inner.delete(name))
    }

    fn remove_leftovers(&self) -> Result<(), BackendError> {
        self.run(Operation::RemoveLeftovers, None, || self.inner.remove_leftovers())
    }
}
