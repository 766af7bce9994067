//go:build race

package main_test

// raced are the tests that run with the race detector when no others are asked for. The binary is built with it as
// well, which makes it several times slower, so these are few: those in which one process does many things at once.
// The rest drive the same code, and the detector has nothing to see in their own.
const raced = "^(TestCrash|TestKeysWhileServing|TestKeysOfAllNodes|TestSignalDrains|TestSecondSignal|" +
	"TestSubmit.*|TestSubmissions.*|TestLoadInterrupted|TestDemoInterrupted|TestStopWhileCutOff|TestNodeCutOff)$"
