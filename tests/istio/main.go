// Istio's own istio-iptables: the program that istio-init runs, and with it the reference that the tests compare
// veer with. Nothing of it is part of veer. `cargo xtask setup` builds it; go.mod says which Istio it is.
package main

import (
	"os"

	"istio.io/istio/pkg/log"
	"istio.io/istio/tools/istio-iptables/pkg/cmd"
)

func main() {
	if err := cmd.GetCommand(log.DefaultOptions()).Execute(); err != nil {
		os.Exit(1)
	}
}
