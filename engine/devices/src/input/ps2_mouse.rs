//! PS/2 mouse behind the keyboard controller: the standard one, which becomes an IntelliMouse with a wheel or an Explorer
//! with five buttons when a driver knocks with the known sequences of sample rates.
//! Movement is gathered until the guest has read what was sent, so a slow guest gets few large steps, never old ones;
//! each press and release of a button is a packet of its own.
//! Left out: 2:1 scaling changes no figures, and the sample rate slows nothing down; both are kept and reported.
//! See: IBM PS/2 Hardware Interface Technical Reference, "Auxiliary Device"; Microsoft, "Intellimouse" wheel protocol.

use crate::fifo::BoundedFifo;
use engine_base::warn_limited;
use engine_bus::RestoreError;
use engine_input::Button;

const ACKNOWLEDGE: u8 = 0xfa;
const RESEND: u8 = 0xfe;
const SELF_TEST_PASSED: u8 = 0xaa;
const DEFAULT_RATE: u8 = 100;
const DEFAULT_RESOLUTION: u8 = 2;
const PACKET_BYTES: usize = 128;
/// Movement gathered beyond this is not worth remembering.
const FARTHEST: i32 = 4096;

/// What a driver has made of it; the number is its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Standard = 0,
    Wheel = 3,
    FiveButtons = 4,
}

/// A command that waits for its parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaiting {
    Nothing,
    SampleRate,
    Resolution,
}

pub struct Ps2Mouse {
    // State the guest can see; all of it is saved
    replies: BoundedFifo<16>,
    packets: BoundedFifo<PACKET_BYTES>,
    kind: Kind,
    enabled: bool,
    /// Packets on demand only.
    remote: bool,
    /// Echoes everything.
    wrapped: bool,
    scaled: bool,
    resolution: u8,
    rate: u8,
    /// The last three sample rates: the knock.
    knock: [u8; 3],
    awaiting: Awaiting,
    last_sent: u8,
    /// Left, right, middle, side, extra from bit 0 on.
    buttons: u8,
    /// Gathered movement: right, up, wheel towards the person.
    moved: [i32; 3],
}

impl Ps2Mouse {
    pub fn new() -> Self {
        Self {
            replies: BoundedFifo::new(),
            packets: BoundedFifo::new(),
            kind: Kind::Standard,
            enabled: false,
            remote: false,
            wrapped: false,
            scaled: false,
            resolution: DEFAULT_RESOLUTION,
            rate: DEFAULT_RATE,
            knock: [0; 3],
            awaiting: Awaiting::Nothing,
            last_sent: 0,
            buttons: 0,
            moved: [0; 3],
        }
    }

    /// The next byte for the controller.
    pub fn pop(&mut self) -> Option<u8> {
        if self.replies.is_empty() && self.packets.is_empty() && self.streams() && self.moved != [0; 3] {
            self.queue_packet();
        }
        let byte = self.replies.pop().or_else(|| self.packets.pop())?;
        self.last_sent = byte;
        Some(byte)
    }

    fn streams(&self) -> bool {
        self.enabled && !self.remote && !self.wrapped
    }

    fn reply(&mut self, bytes: &[u8]) {
        // A host that sends command after command without reading loses answers, as with a real one.
        self.replies.push_what_fits(bytes);
    }

    fn set_defaults(&mut self) {
        self.packets.clear();
        self.enabled = false;
        self.remote = false;
        self.scaled = false;
        self.resolution = DEFAULT_RESOLUTION;
        self.rate = DEFAULT_RATE;
        self.moved = [0; 3];
    }

    /// A byte from the controller: a command or its parameter.
    pub fn command(&mut self, byte: u8) {
        if self.wrapped && byte != 0xec && byte != 0xff {
            self.reply(&[byte]);
            return;
        }
        match std::mem::replace(&mut self.awaiting, Awaiting::Nothing) {
            Awaiting::Nothing => {}
            Awaiting::SampleRate => return self.set_rate(byte),
            Awaiting::Resolution => {
                self.resolution = byte & 3;
                return self.reply(&[ACKNOWLEDGE]);
            }
        }
        let known = matches!(byte, 0xe6..=0xec | 0xee | 0xf0 | 0xf2..=0xf6 | 0xfe | 0xff);
        if !known {
            warn_limited!(byte, "PS/2 mouse: no such command");
            return self.reply(&[RESEND]);
        }
        if byte == 0xfe {
            return self.reply(&[self.last_sent]);
        }
        self.reply(&[ACKNOWLEDGE]);
        match byte {
            0xe6 => self.scaled = false,
            0xe7 => self.scaled = true,
            0xe8 => self.awaiting = Awaiting::Resolution,
            0xe9 => self.reply(&[self.status(), self.resolution, self.rate]),
            0xea => self.remote = false,
            0xeb => {
                let packet = self.take_packet();
                self.reply(&packet);
            }
            0xec => self.wrapped = false,
            0xee => self.wrapped = true,
            0xf0 => self.remote = true,
            0xf2 => self.reply(&[self.kind as u8]),
            0xf3 => self.awaiting = Awaiting::SampleRate,
            0xf4 => self.enabled = true,
            0xf5 => {
                self.enabled = false;
                self.packets.clear();
            }
            0xf6 => self.set_defaults(),
            _ => {
                let buttons = self.buttons;
                *self = Self { buttons, ..Self::new() };
                self.reply(&[ACKNOWLEDGE, SELF_TEST_PASSED, 0]);
            }
        }
    }

    fn set_rate(&mut self, rate: u8) {
        self.rate = rate;
        self.knock = [self.knock[1], self.knock[2], rate];
        match self.knock {
            [200, 100, 80] => self.kind = Kind::Wheel,
            [200, 200, 80] => self.kind = Kind::FiveButtons,
            _ => {}
        }
        self.reply(&[ACKNOWLEDGE]);
    }

    fn status(&self) -> u8 {
        // Here the left button is bit 2 and the right one bit 0.
        let buttons = (self.buttons & 1) << 2 | self.buttons >> 1 & 1 | (self.buttons >> 2 & 1) << 1;
        u8::from(self.remote) << 6 | u8::from(self.enabled) << 5 | u8::from(self.scaled) << 4 | buttons
    }

    /// A packet of what has gathered; what does not fit into it stays.
    fn take_packet(&mut self) -> Vec<u8> {
        let [dx, dy, wheel] = &mut self.moved;
        let take = |moved: &mut i32, most: i32| {
            let now = (*moved).clamp(-most, most);
            *moved -= now;
            now
        };
        let (x, y) = (take(dx, 255), take(dy, 255));
        let first = 0x08 | self.buttons & 7 | u8::from(x < 0) << 4 | u8::from(y < 0) << 5;
        let mut packet = vec![first, x as u8, y as u8];
        match self.kind {
            Kind::Standard => *wheel = 0,
            Kind::Wheel => packet.push(take(wheel, 127) as u8),
            Kind::FiveButtons => packet.push(take(wheel, 7) as u8 & 0x0f | (self.buttons >> 3 & 3) << 4),
        }
        packet
    }

    fn queue_packet(&mut self) {
        if PACKET_BYTES - self.packets.len() < 4 {
            warn_limited!("PS/2 mouse: the guest does not read its packets; one is lost");
            return;
        }
        let packet = self.take_packet();
        self.packets.push_what_fits(&packet);
    }

    /// The pointer moved: counts to the right and down.
    pub fn pointer_moved(&mut self, right: i32, down: i32) {
        self.gather(0, right);
        self.gather(1, down.saturating_neg());
    }

    /// The wheel turned: notches away from the person.
    pub fn wheel(&mut self, notches: i32) {
        if self.kind != Kind::Standard {
            self.gather(2, notches.saturating_neg());
        }
    }

    fn gather(&mut self, axis: usize, counts: i32) {
        self.moved[axis] = self.moved[axis].saturating_add(counts).clamp(-FARTHEST, FARTHEST);
    }

    /// A button goes down or up.
    pub fn button(&mut self, button: Button, pressed: bool) {
        let bit = match button {
            Button::Left => 1,
            Button::Right => 2,
            Button::Middle => 4,
            Button::Side => 8,
            Button::Extra => 16,
        };
        let before = self.buttons;
        self.buttons = if pressed { before | bit } else { before & !bit };
        let reported = if self.kind == Kind::FiveButtons { 0x1f } else { 0x07 };
        if (before ^ self.buttons) & reported != 0 && self.streams() {
            self.queue_packet();
        }
    }

    pub fn save(&self) -> saved::Ps2Mouse {
        let Self {
            replies,
            packets,
            kind,
            enabled,
            remote,
            wrapped,
            scaled,
            resolution,
            rate,
            knock,
            awaiting,
            last_sent,
            buttons,
            moved,
        } = self;
        saved::Ps2Mouse {
            replies: replies.to_vec(),
            packets: packets.to_vec(),
            kind: *kind as u8,
            enabled: *enabled,
            remote: *remote,
            wrapped: *wrapped,
            scaled: *scaled,
            resolution: *resolution,
            rate: *rate,
            knock: *knock,
            awaiting: match awaiting {
                Awaiting::Nothing => 0,
                Awaiting::SampleRate => 0xf3,
                Awaiting::Resolution => 0xe8,
            },
            last_sent: *last_sent,
            buttons: *buttons,
            moved: *moved,
        }
    }

    pub fn of_saved(saved: saved::Ps2Mouse) -> Result<Self, RestoreError> {
        Ok(Self {
            replies: BoundedFifo::of_saved(&saved.replies)?,
            packets: BoundedFifo::of_saved(&saved.packets)?,
            kind: match saved.kind {
                0 => Kind::Standard,
                3 => Kind::Wheel,
                4 => Kind::FiveButtons,
                _ => return Err(RestoreError::impossible("PS/2 mouse: no such kind")),
            },
            enabled: saved.enabled,
            remote: saved.remote,
            wrapped: saved.wrapped,
            scaled: saved.scaled,
            resolution: saved.resolution & 3,
            rate: saved.rate,
            knock: saved.knock,
            awaiting: match saved.awaiting {
                0 => Awaiting::Nothing,
                0xf3 => Awaiting::SampleRate,
                0xe8 => Awaiting::Resolution,
                _ => return Err(RestoreError::impossible("PS/2 mouse: no such command")),
            },
            last_sent: saved.last_sent,
            buttons: saved.buttons & 0x1f,
            moved: saved.moved.map(|counts| counts.clamp(-FARTHEST, FARTHEST)),
        })
    }
}

pub mod saved {
    use serde::{Deserialize, Serialize};

    #[derive(Serialize, Deserialize)]
    pub struct Ps2Mouse {
        pub replies: Vec<u8>,
        pub packets: Vec<u8>,
        pub kind: u8,
        pub enabled: bool,
        pub remote: bool,
        pub wrapped: bool,
        pub scaled: bool,
        pub resolution: u8,
        pub rate: u8,
        pub knock: [u8; 3],
        pub awaiting: u8,
        pub last_sent: u8,
        pub buttons: u8,
        pub moved: [i32; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mouse: &mut Ps2Mouse) -> Vec<u8> {
        std::iter::from_fn(|| mouse.pop()).collect()
    }

    fn send(mouse: &mut Ps2Mouse, bytes: &[u8]) -> Vec<u8> {
        bytes.iter().for_each(|byte| mouse.command(*byte));
        drain(mouse)
    }

    #[test]
    fn a_standard_mouse_sends_three_bytes() {
        let mut mouse = Ps2Mouse::new();
        assert_eq!(send(&mut mouse, &[0xff]), [0xfa, 0xaa, 0x00]);
        assert_eq!(send(&mut mouse, &[0xf2]), [0xfa, 0x00]);
        mouse.pointer_moved(5, 5);
        assert_eq!(drain(&mut mouse), [], "disabled after reset");
        send(&mut mouse, &[0xf6, 0xf4]);
        mouse.pointer_moved(5, 3);
        assert_eq!(drain(&mut mouse), [0x28, 5, 0xfd]);
        mouse.button(Button::Right, true);
        mouse.button(Button::Right, false);
        assert_eq!(drain(&mut mouse), [0x0a, 0, 0, 0x08, 0, 0], "a click is never swallowed");
    }

    #[test]
    fn knocking_makes_it_a_wheel_mouse_and_then_five_buttons() {
        let mut mouse = Ps2Mouse::new();
        send(&mut mouse, &[0xf3, 200, 0xf3, 100, 0xf3, 80]);
        assert_eq!(send(&mut mouse, &[0xf2]), [0xfa, 3]);
        send(&mut mouse, &[0xf4]);
        mouse.wheel(1);
        assert_eq!(drain(&mut mouse), [0x08, 0, 0, 0xff]);
        send(&mut mouse, &[0xf3, 200, 0xf3, 200, 0xf3, 80]);
        assert_eq!(send(&mut mouse, &[0xf2]), [0xfa, 4]);
        mouse.button(Button::Extra, true);
        assert_eq!(drain(&mut mouse), [0x08, 0, 0, 0x20]);
    }

    #[test]
    fn far_movement_comes_in_several_packets() {
        let mut mouse = Ps2Mouse::new();
        send(&mut mouse, &[0xf4]);
        mouse.pointer_moved(-300, 0);
        assert_eq!(drain(&mut mouse), [0x18, 0x01, 0, 0x18, 0xd3, 0]);
    }

    #[test]
    fn remote_mode_sends_on_demand_and_status_tells() {
        let mut mouse = Ps2Mouse::new();
        send(&mut mouse, &[0xf4, 0xf0, 0xe8, 3]);
        mouse.pointer_moved(1, 0);
        assert_eq!(drain(&mut mouse), []);
        assert_eq!(send(&mut mouse, &[0xeb]), [0xfa, 0x08, 1, 0]);
        mouse.button(Button::Left, true);
        assert_eq!(send(&mut mouse, &[0xe9]), [0xfa, 0x64, 3, 100]);
    }
}
