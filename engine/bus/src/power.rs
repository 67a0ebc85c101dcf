//! What a device may ask of the whole machine. It is a request to `vm-control`, never done on the asking stack.

use std::sync::Arc;

/// A request to the machine's control thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerRequest {
    /// The RESET line: keyboard controller, port 92h, port CF9h, ACPI reset register, triple fault.
    Reset,
    /// ACPI S5: the guest switched itself off.
    Shutdown,
    /// ACPI S3: the guest wants to sleep.
    Suspend,
    /// `isa-debug-exit`: end the process with this status.
    Exit(i32),
}

/// The way to ask.
#[derive(Clone)]
pub struct Power(Arc<dyn Fn(PowerRequest) + Send + Sync>);

impl Power {
    /// Requests go to `ask`, which must not block.
    pub fn new(ask: impl Fn(PowerRequest) + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }

    /// Asks.
    pub fn request(&self, request: PowerRequest) {
        (self.0)(request);
    }
}
