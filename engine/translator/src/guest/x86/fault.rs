//! What ends a handler early: an exception, or a change that the trace must not run past.

/// The result of a handler.
pub(crate) type Exec = Result<(), Stop>;

/// Why a handler did not say "go on".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The instruction is complete; look everything up again.
    EndTrace,
    /// Do the instruction again after a poll: an unfinished REP.
    Again,
    /// The trace is stale: this instruction has not been executed.
    Stale,
    /// A fault: nothing was changed.
    Exception(Exception),
    /// The CPU must leave `run` with [`engine_cpu::Exit::TripleFault`].
    TripleFault,
}

/// A fault or trap. For #PF the address is in `cpu.fault_address`, which becomes CR2 on delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exception {
    /// Vector.
    pub vector: u8,
    /// Error code, for those that have one.
    pub error: Option<u16>,
}

/// Exception vectors (Intel SDM volume 3, table 6-1).
#[allow(dead_code, reason = "the table is complete")]
pub(crate) mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
}

#[allow(dead_code, reason = "one constructor for each exception")]
impl Stop {
    /// An exception without an error code.
    #[cold]
    pub fn plain(vector: u8) -> Self {
        Self::Exception(Exception { vector, error: None })
    }
    /// An exception with an error code.
    #[cold]
    pub fn with_error(vector: u8, error: u16) -> Self {
        Self::Exception(Exception { vector, error: Some(error) })
    }
    /// #DE
    #[cold]
    pub fn de() -> Self {
        Self::plain(vector::DE)
    }
    /// #UD
    #[cold]
    pub fn ud() -> Self {
        Self::plain(vector::UD)
    }
    /// #NM
    #[cold]
    pub fn nm() -> Self {
        Self::plain(vector::NM)
    }
    /// #GP(error)
    #[cold]
    pub fn gp(error: u16) -> Self {
        Self::with_error(vector::GP, error)
    }
    /// #SS(error)
    #[cold]
    pub fn ss(error: u16) -> Self {
        Self::with_error(vector::SS, error)
    }
    /// #NP(error)
    #[cold]
    pub fn np(error: u16) -> Self {
        Self::with_error(vector::NP, error)
    }
    /// #TS(error)
    #[cold]
    pub fn ts(error: u16) -> Self {
        Self::with_error(vector::TS, error)
    }
}
