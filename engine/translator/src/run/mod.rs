//! What running translated code needs, whatever the guest: the memory it lies in.

pub(crate) mod code_memory;
