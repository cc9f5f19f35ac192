// Command coredns is the DNS server of the e2e cluster, with the plugins that its Corefile uses and no others.
package main

import (
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/bind"
	_ "github.com/coredns/coredns/plugin/cache"
	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/loadbalance"
	_ "github.com/coredns/coredns/plugin/log"
	_ "github.com/coredns/coredns/plugin/metrics"
	_ "github.com/coredns/coredns/plugin/ready"
	_ "github.com/coredns/coredns/plugin/template"
)

// A query passes the plugins in this order, whatever the order in the Corefile: that of CoreDNS itself.
func init() {
	dnsserver.Directives = []string{
		"bind",
		"health",
		"ready",
		"prometheus",
		"errors",
		"log",
		"cache",
		"loadbalance",
		"template",
		"kubernetes",
	}
}

func main() {
	coremain.Run()
}
