"""Published checkpoints to parameter trees and back."""
