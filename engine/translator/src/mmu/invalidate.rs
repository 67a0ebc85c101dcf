//! What makes translations invalid, and what has to go then (Intel SDM volume 3, 4.10.4).
//!
//! Three things are derived from the page tables: the first level of the TLB (host addresses), the second (physical addresses), and
//! what instruction fetches rely on (fetched pages and the links between traces, see `guest/x86/trace.rs`).

use crate::guest::x86::cpu::{Cpu, cr4};
use crate::shared::attention;
use crate::watch::tally::Happening;
use std::sync::atomic::Ordering;

impl Cpu {
    /// The PCID that is in use: 0 unless CR4.PCIDE is set.
    fn pcid(&self) -> u16 {
        if self.cr4 & cr4::PCIDE != 0 { self.cr3 as u16 & 0xfff } else { 0 }
    }

    /// Forgets all translations of all address spaces, global ones included: paging changed, or a new state was loaded.
    pub fn flush_tlb(&mut self) {
        self.tlb.flush();
        self.second_level.forget_all(self.pcid());
        self.traces.forget_links();
        self.a20_seen = self.fabric.a20_mask.load(Ordering::Relaxed);
    }

    /// Forgets the host addresses that have been derived from physical ones; what the page tables say still holds.
    pub(crate) fn flush_host_addresses(&mut self) {
        self.tlb.flush();
        self.traces.forget_links();
    }

    /// CR3 has been loaded: its address space is in use from now on. `keep`: what is known of its PCID still holds.
    pub(crate) fn enter_address_space(&mut self, keep: bool) {
        let pcid = self.pcid();
        if !keep {
            self.second_level.forget(pcid);
        }
        self.shared.tally.count(Happening::SwitchedSpace);
        self.second_level.enter(pcid);
        self.tlb.flush_local();
        self.traces.enter(self.second_level.context());
    }

    /// INVLPG: forgets the page of `linear` in the current address space, and a global one.
    pub(crate) fn flush_page(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        self.second_level.forget_page(linear);
        self.traces.forget_page(linear);
    }

    /// Forgets the page of `linear` in the address space of `pcid`.
    pub(crate) fn flush_page_of(&mut self, pcid: u16, linear: u64) {
        if pcid == self.pcid() {
            return self.flush_page(linear);
        }
        self.second_level.forget_page_of(pcid, linear);
        self.traces.forget_page_elsewhere(linear);
    }

    /// Forgets the address space of `pcid`, but for global pages.
    pub(crate) fn flush_pcid(&mut self, pcid: u16) {
        if pcid == self.pcid() {
            return self.enter_address_space(false);
        }
        self.second_level.forget(pcid);
    }

    /// Forgets all address spaces, but for global pages.
    pub(crate) fn flush_all_local(&mut self) {
        self.second_level.forget_local(self.pcid());
        self.tlb.flush_local();
        self.traces.enter(self.second_level.context());
    }

    /// An access to `linear` has faulted: what is known of its page goes, as a CPU would let it go.
    pub(super) fn forget_faulted(&mut self, linear: u64) {
        self.tlb.flush_page(linear);
        self.second_level.forget_page(linear);
    }

    /// This CPU has been quiet between two polls, and others may have gone on as if it had obeyed them. The entries that they have
    /// revoked go now; what else they ask for waits for the poll.
    pub(crate) fn after_quiet(&mut self) {
        if self.shared.attention() & attention::FLUSH != 0 {
            self.tlb.flush();
        }
    }

    /// Somebody else asks for a flush: they have made code of a page (write entries must go), changed the layout of memory, or
    /// the A20 gate.
    pub(crate) fn flush_as_asked(&mut self) {
        self.shared.tally.count(Happening::FlushedForOthers);
        let generation = self.fabric.memory.generation();
        if self.a20_seen != self.fabric.a20_mask.load(Ordering::SeqCst) {
            self.flush_tlb();
        } else if generation != self.memory_generation {
            self.flush_host_addresses();
        } else {
            self.tlb.flush();
        }
        if generation != self.memory_generation {
            self.memory_generation = generation;
            self.physical_pages.forget();
        }
    }
}
